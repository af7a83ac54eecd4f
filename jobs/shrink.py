"""Write a smaller copy of a Pegasus or BART model, with fewer encoder or decoder layers, to fine-tune."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pegasus_batch.training.shrink import parse_layers, shrink


def main(
    model: Annotated[Path, typer.Option(help="Model directory, or hub id, to start from.")],
    output: Annotated[Path, typer.Option(help="Directory of the smaller model; must be new or empty.")],
    encoder_layers: Annotated[
        str, typer.Option(help='Layers to keep: "all", how many ("3", spread evenly) or which ("0,6,11").')
    ] = "all",
    decoder_layers: Annotated[str, typer.Option(help="The same for the decoder.")] = "all",
) -> None:
    try:
        kept = shrink(
            model, output, encoder_layers=parse_layers(encoder_layers), decoder_layers=parse_layers(decoder_layers)
        )
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error
    for stack, layers in kept.items():
        typer.echo(f"{stack}: kept layers {', '.join(map(str, layers))}")


if __name__ == "__main__":
    typer.run(main)
