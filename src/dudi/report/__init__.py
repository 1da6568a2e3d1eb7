"""One page about training runs and evaluations, from their files alone: no model, no torch.

files      what is read: run folders (`runs`) and evaluation folders (`evals`), checked line by line
numbers    what is computed: `training` (runs), `compare` (evaluations)
stats      intervals and tests, by themselves
comparison methods against a baseline over training seeds: what `dudi compare` prints
page       what is shown: `results`, `side_by_side`, `curves`, `figures` make blocks; `html` and `markdown` print them,
           `latex` the tables
`write`    puts the files into one folder, the page last
"""
