"""Live tests: the engine against real servers."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.cases")
