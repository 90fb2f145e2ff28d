"""LiteLLM as a client library, in a process of its own: it sets up much of the interpreter that it is imported into.

Usage: litellm_client.py URL MODEL; one JSON object on standard output.
"""

import json
import sys
from typing import Any

import litellm


def main(url: str, model: str) -> None:
    """Ask for everything once."""
    usual: Any = {"api_base": f"{url}/v1", "api_key": "none", "timeout": 45, "num_retries": 0}
    asked: Any = usual | {"model": f"openai/{model}", "messages": [{"role": "user", "content": "hello"}]}
    whole = litellm.completion(**asked)
    streamed = litellm.completion(**asked, stream=True)
    native: Any = {"model": f"ollama_chat/{model}", "api_base": url, "messages": asked["messages"]}
    told = {
        "whole": [whole.choices[0].message.content, whole.usage.total_tokens],
        "streamed": "".join(chunk.choices[0].delta.content or "" for chunk in streamed),
        "responses": litellm.responses(model=f"openai/{model}", input="hello", **usual).output[0].content[0].text,
        "ollama": litellm.completion(**native).choices[0].message.content,
    }
    try:
        litellm.embedding(model=f"openai/{model}", input=["hello"], **usual)
    except litellm.NotFoundError as error:
        told["embedding"] = str(error)
    try:
        litellm.completion(**asked, temperature=3)
    except litellm.BadRequestError as error:
        told["wrong"] = str(error)
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
