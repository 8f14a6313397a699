"""Sphinx configuration: `python -m sphinx docs build/docs`."""

project = "vidflow"
author = "The vidflow developers"
extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["**/_*.md"]  # parts of other pages
html_theme = "furo"
html_title = "vidflow"
html_static_path = ["_static"]
html_css_files = ["site.css"]
