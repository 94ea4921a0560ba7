"""FastAPI + ONNX Runtime: a plain endpoint, run in the thread pool."""
# Its packages are in a separate environment, which mypy does not check.
# mypy: disable-error-code="import-not-found"

import uvicorn
from fastapi import FastAPI
from minilm import PORT, PROCESSES, MiniLM
from pydantic import BaseModel

app = FastAPI()
embed = MiniLM()


class Request(BaseModel):
    texts: list[str]


class Response(BaseModel):
    embeddings: list[list[float]]


@app.post("/embed")
def embed_texts(request: Request) -> Response:
    return Response(embeddings=embed(request.texts))


if __name__ == "__main__":
    uvicorn.run(
        "fastapi_onnx:app", port=PORT, workers=PROCESSES, access_log=False, log_level="warning"
    )
