"""Reports: results as one HTML page or as Markdown.

A report is a list of `blocks`, made once by modules that each know one part of it, and rendered by one template for
each format; so both have the same content. A further chapter is a function that gives blocks, beginning with a
`Heading`, and a line in `make.make_report`.
"""
