"""Add up the JUnit reports of several pytest runs: the last line of .ci/run.

    python3 tools/count_tests.py FOLDER [--sections-failed N]

Prints "N passed, N failed, N skipped"; exits 1 when a test or a section failed, or when nothing passed at all.
"""

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sections-failed", type=int, default=0)
    options = parser.parse_args()
    total = failed = skipped = 0
    for report in sorted(options.folder.glob("*.xml")):
        for suite in ElementTree.parse(report).iter("testsuite"):
            total += int(suite.get("tests", "0"))
            failed += int(suite.get("failures", "0")) + int(suite.get("errors", "0"))
            skipped += int(suite.get("skipped", "0"))
    passed = total - failed - skipped
    if options.sections_failed:
        print(f"{options.sections_failed} section(s) failed")
    # A section can fail without a failing test (a build, a linter): it counts as one, so that the line never looks green.
    failed = max(failed, options.sections_failed)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
