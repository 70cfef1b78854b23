"""``python -m llm2comp`` is ``llm2comp``."""

import sys

from llm2comp.cli import process

if "multiprocessing" in sys.modules:  # a worker imports this module first, and torch takes seconds
    from llm2comp.utils.processes import end_with_parent

    end_with_parent()


def main() -> None:
    """Run the command line in a process of its own."""
    process.end_on_signals()
    process.prepare_streams()
    from llm2comp.cli.app import app  # only now, because a signal may come during the import

    try:
        app()
    except SystemExit as end:
        if end.code == 1 and process.reader_has_gone():  # what Typer and Rich make of it
            raise SystemExit(process.CLOSED_PIPE) from None
        raise
    finally:
        process.drop_unwritten()
        process.leave_signals()


if __name__ == "__main__":
    main()
