"""The benchmark harness: engine beside its peers, measured from outside. README.md says what each number is, and is not.

Installed as `putengine_bench` (`putengine bench`); in a checkout it is the package `bench` (`python -m bench`), so its modules
import one another relatively.
"""
