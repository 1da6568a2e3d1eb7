"""Methods against a baseline, where each name has one evaluation or, with several training seeds, several.

`read`       names and folders -> groups of evaluations that can be compared
`numbers`    scores over seeds, differences with their intervals, tests
`page`       the same as tables
`write`      the page, or the numbers, as a file: Markdown, JSON, LaTeX or HTML
"""
