"""`serve run serve.app:app`: binds the graph of `zsad.distributed.serving` with the page beside this file.

Settings come from the TOML file that `ZSAD_SERVE_CONFIG` names; docs/http.md lists them.
"""

from pathlib import Path

from zsad.distributed.serving import build_graph
from zsad.http.auth import load_tokens
from zsad.serve_config import load_serve_config

PAGE = Path(__file__).parent / "page"


def page_files() -> dict[str, bytes]:
    """Name -> content of the page's files."""
    paths = sorted(path for path in PAGE.rglob("*") if path.is_file())
    return {path.relative_to(PAGE).as_posix(): path.read_bytes() for path in paths}


config = load_serve_config()
app = build_graph(config, page_files(), load_tokens(config.tokens_file))
