"""For Locust: people who ask, read the streamed answer, and think before they ask again.

Rule: an answer counts as a success only if it was whole. Refusals (429, 503) are failures with their own name, so that
they are counted apart.

    pip install locust
    locust -f bench/locustfile.py --host http://127.0.0.1:9000 --users 100 --spawn-rate 10 --headless --run-time 2m
"""

import json
import os
import time

from locust import HttpUser, between, task

REFUSALS = (429, 503)
MODEL = os.environ.get("MODEL", "auto")
KEY = os.environ.get("MTOR_KEY", "")


class Reader(HttpUser):
    """Asks, and reads."""

    wait_time = between(1, 5)

    @task
    def ask(self) -> None:
        """One streamed answer; its first word is an entry of its own."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Tell me a story."}]}
        body |= {"stream": True, "max_tokens": 64}
        headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
        began = time.perf_counter()
        asked = self.client.post(
            "/v1/chat/completions", json=body, headers=headers, stream=True, catch_response=True, name="answer"
        )
        with asked as response:
            if response.status_code in REFUSALS:
                response.failure(f"refused: {response.status_code}")
                return
            done = False
            for line in response.iter_lines():
                if not line.startswith(b"data: "):
                    continue
                done = line == b"data: [DONE]"
                if began and not done and _has_text(json.loads(line[6:])):
                    self._first_word((time.perf_counter() - began) * 1_000)
                    began = 0.0
            if done:
                response.success()
            else:
                response.failure("the answer broke off")

    def _first_word(self, milliseconds: float) -> None:
        self.environment.events.request.fire(
            request_type="POST", name="first word", response_time=milliseconds, response_length=0, exception=None
        )


def _has_text(event: dict) -> bool:
    return any(choice.get("delta", {}).get("content") for choice in event.get("choices", ()))
