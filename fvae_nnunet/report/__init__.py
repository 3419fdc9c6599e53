"""Reports: results as one HTML page or as Markdown.

A report is a list of `blocks`, built by one module per chapter and rendered by one template per format, so that both
formats have the same content. To add a chapter, write a function that yields blocks, beginning with a `Heading`, and
call it in `make.make_report`.
"""
