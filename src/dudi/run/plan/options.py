"""What `dudi plan` is told beside a recipe. Loads no torch."""

from __future__ import annotations

from typing import Annotated

import typer

Device = Annotated[
    str | None,
    typer.Option(help="h200, h100, a100-80, a100-40, l40s, l4, rtx4090 or cpu; by default this machine's."),
]
Gpus = Annotated[int, typer.Option(help="Devices that share each step (ddp).")]
Price = Annotated[float | None, typer.Option(help="Of a device for an hour, in any currency.")]
Measure = Annotated[
    bool, typer.Option("--measure", help="Also run some real steps of each stage on this machine, and keep nothing.")
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE", help="Write the plan as JSON; - is standard output.")
]
