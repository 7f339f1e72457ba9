"""One file per group of pages: read, build the values of a template, render; or take a form and call one rule."""
