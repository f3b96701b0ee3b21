"""A service that plans when it starts: the model is loaded with what fits into the memory that is free then.

MODEL=model.gguf CONTEXT=16k uvicorn service:app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import autofit
import llama_cpp
from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel


class Prompt(BaseModel):
    prompt: str
    max_tokens: int = 64


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    arguments = autofit.tune(llama_cpp.Llama, os.environ["MODEL"], context=os.environ.get("CONTEXT", "16k"))
    app.state.arguments = arguments
    app.state.model = llama_cpp.Llama(**arguments)
    yield
    app.state.model.close()


app = FastAPI(lifespan=lifespan)


@app.get("/settings")
def settings(request: Request) -> dict[str, object]:
    return dict(request.app.state.arguments)


@app.post("/complete")
def complete(prompt: Prompt, request: Request) -> dict[str, str]:
    n_ctx = request.app.state.arguments["n_ctx"]
    if prompt.max_tokens > n_ctx:
        raise HTTPException(422, f"max_tokens {prompt.max_tokens} is more than the context of {n_ctx} tokens")
    answer = request.app.state.model(prompt.prompt, max_tokens=prompt.max_tokens)
    return {"text": answer["choices"][0]["text"]}
