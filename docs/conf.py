"""How Sphinx makes the documentation: `make docs`."""

from importlib.metadata import version as installed

project = "netalloc"
author = "The netalloc authors"
copyright = "The netalloc authors"
release = installed("netalloc")
extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"netalloc {release}"
myst_heading_anchors = 4
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
pygments_style = "default"
suppress_warnings = ["misc.highlighting_failure"]
nitpicky = False
