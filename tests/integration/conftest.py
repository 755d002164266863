"""What the tests of the command line share."""

import pytest

from tests.support import launch


@pytest.fixture(scope="module", autouse=True)
def at_the_root():
    """Finds gin files and the modules of tests by their names in the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(launch.ROOT)
        patch.syspath_prepend(str(launch.ROOT))
        yield
