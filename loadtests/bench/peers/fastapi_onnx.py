"""FastAPI + ONNX Runtime: a plain endpoint, run in a thread of the pool."""
# Its packages are in an environment of its own, where mypy does not look.
# mypy: disable-error-code="import-not-found"

import uvicorn
from fastapi import FastAPI
from minilm import PORT, PROCESSES, MiniLM
from pydantic import BaseModel

app = FastAPI()
embed = MiniLM()


class Request(BaseModel):
    text: str


class Response(BaseModel):
    embedding: list[float]


@app.post("/embed")
def answer(request: Request) -> Response:
    return Response(embedding=embed([request.text])[0])


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_onnx:app", port=PORT, workers=PROCESSES, access_log=False, log_level="warning"
    )
