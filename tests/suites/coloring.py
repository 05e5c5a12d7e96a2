"""The worker that colours a file as the service does."""

import logging
import traceback
import warnings
from pathlib import Path
from typing import Any

from service.errors import Problem
from service.inference.registry import ModelRegistry
from service.pipeline.colorizer import Colorizer
from service.pipeline.options import Options
from service.settings import Settings
from tests.suites.worker import serve


def main() -> None:
    """Serve questions {path, answer}: colour the file into `answer`, a PNG; return status, code and detail."""
    logging.disable()
    warnings.simplefilter("ignore")
    settings = Settings(models=Settings().models)
    colorizer = Colorizer(ModelRegistry(settings), settings)

    def one(question: dict[str, Any]) -> dict[str, Any]:
        try:
            answer = colorizer.colorize(Path(question["path"]).read_bytes(), Options(format="png"))
        except Problem as problem:
            return {"status": problem.status, "code": problem.code, "detail": problem.detail}
        except Exception:  # noqa: BLE001 - as the service, which reports any error as 500
            return {"status": 500, "code": "internal_error", "detail": traceback.format_exc(limit=-3)}
        Path(question["answer"]).write_bytes(answer.data)
        return {"status": 200}

    serve(one)


if __name__ == "__main__":
    main()
