"""Programs that tests start in processes of their own (`kit.processes`): `python -m kit.workers.NAME`."""
