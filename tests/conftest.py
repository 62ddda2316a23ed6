"""Every public signature of the package is checked while the tests run: shapes by jaxtyping, types by beartype."""

from jaxtyping import install_import_hook

install_import_hook("loom4d", "beartype.beartype")
