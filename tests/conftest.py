"""Every public signature of the package is checked while the tests run: shapes by jaxtyping, types by beartype."""

import pytest
from jaxtyping import install_import_hook

install_import_hook("loom4d", "beartype.beartype")


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """One running web app for every test that needs one: starting it takes most of their time."""
    from loom4d.serve.settings import Limits, Settings
    from serving import Served, free_port, write_checkpoints

    folder = tmp_path_factory.mktemp("serve")
    server = Served(
        Settings(
            folder=folder / "data",
            port=free_port(),
            checkpoints=write_checkpoints(folder),
            extensions=("serve_tiny",),
            trials=False,
            limits=Limits(look_cpu_seconds=0.5),
        )
    )
    server.start()
    yield server
    server.kill()
    server.until(lambda: not server.children(), 60)
