"""The paper's tables and figures in the lab: every cell a shipped recipe of the paper with the lab laid over it.

`grid`       which cells there are, in which table, of which pair of models; grid.toml
`findings`   what the paper claims, as contrasts of cells and one rule, declared before any ranking; findings.toml
`cells`      a cell under one seed: its recipe, what it starts from, its key
`lines`      finished cells as JSON lines
`checks`     whether lines are what they say, go together, and may be added to
`work`       the process that trains and evaluates one cell
`runner`     which cell runs when
`verdicts`   lines -> what became of each finding
`page`       lines -> tables, figures, verdicts
`command`    `dudi lab tables`
"""
