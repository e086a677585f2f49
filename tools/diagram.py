"""Draw the exchange's states from its table, as a Mermaid diagram in ARCHITECTURE.md.

python tools/diagram.py            print it
python tools/diagram.py --write    put it into ARCHITECTURE.md (tests/test_docs.py checks that it is the table's)
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from engine.exchange import TRANSITIONS, Action, Exchange, Plan, State  # noqa: E402

PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- tools/diagram.py --write made this -->\n"
END = "<!-- end -->\n"


def initial_states() -> list[State]:
    plans = (Plan(body_size=1, asks=True), Plan(body_size=1), Plan(body_size=0))
    return sorted({Exchange(plan, now=0.0).state for plan in plans})


def edges() -> dict[tuple[State, State], list[str]]:
    """(from, to) → labels, without what changes nothing and without the ways to FAILED: a picture has to show something."""
    found: dict[tuple[State, State], list[str]] = {}
    for (state, happened), row in TRANSITIONS.items():
        if row.state in (state, State.FAILED):
            continue
        actions = [action.name.lower() for action in row.actions if action is not Action.DELIVER]
        found.setdefault((state, row.state), []).append(" / ".join([happened.name.lower(), *actions]))
    return found


def diagram() -> str:
    lines = ["```mermaid", "stateDiagram-v2"]
    lines += [f"    [*] --> {state.name}" for state in initial_states()]
    for (state, following), labels in sorted(edges().items()):
        lines.append(f"    {state.name} --> {following.name}: {', '.join(labels)}")
    lines += ["    DONE --> [*]", "```"]
    fatal = sorted(
        {happened for (state, happened), row in TRANSITIONS.items() if row.state is State.FAILED is not state}
    )
    names = ", ".join(f"`{happened.name.lower()}`" for happened in fatal)
    lines += ["", f"Left out: inputs that change nothing, and the ways to `FAILED` ({names})."]
    return "\n".join(lines) + "\n"


def put_into(page: str) -> str:
    """The page with the diagram of today between the markers. Raises ValueError without markers."""
    before, found_begin, rest = page.partition(BEGIN)
    _, found_end, after = rest.partition(END)
    if not (found_begin and found_end):
        raise ValueError(f"no place for the diagram: {BEGIN.strip()} … {END.strip()}")
    return f"{before}{BEGIN}\n{diagram()}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    if parser.parse_args().write:
        PAGE.write_text(put_into(PAGE.read_text()))
    else:
        print(diagram(), end="")


if __name__ == "__main__":
    main()
