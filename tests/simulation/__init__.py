"""The engine against simulated peers, on a clock that jumps: the real client, connection, parser and machine, no kernel.

  loop.py      an event loop without descriptors, in virtual time
  network.py   what the engine takes for a kernel: sockets, names, the native sender; and a tap on every connection
  peers.py     servers that do what a seed says
  referee.py   the invariants, judged from the taps alone
  scenario.py  one seed: a client, its settings, its calls, their ends

`python -m tests.simulation --seed N` replays a scenario and prints what happened in it.
"""
