"""Sphinx configuration: furo, MyST, and the API from the docstrings."""

import memwatch

project = "memwatch"
author = "The memwatch developers"
copyright = "2026, the memwatch developers"
release = version = memwatch.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"memwatch {release}"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signatures have them
nitpicky = False
