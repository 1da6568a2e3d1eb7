"""The lab: a small world in eight languages, with models, data and a benchmark, that everything else runs on."""
