"""The Generate event of a tab: it queues, and answers at once. What follows (progress, previews, pictures) reaches the
page as server-sent events; see js/."""

import json
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import gradio as gr
from pydantic import ValidationError

from modules.generation.request import GenerationRequest
from modules.web.filling import Wires, reply
from modules.web.form import Form, Values, problems_of, sentence
from modules.web.parts import EACH

if TYPE_CHECKING:
    from modules.app import App

log = logging.getLogger(__name__)

DATABASE_FAILED = (
    "The list of jobs cannot be written now (a full disk?), so nothing was queued. Make room, then try again."
)

Requests = Callable[[Values, dict[str, Any]], Sequence[GenerationRequest]]  # of the form's values and the ticket


def bind_generate(app: "App", form: Form, wires: Wires, generate: gr.Button, requests: Requests) -> None:
    """One request, but for a batch of pictures."""
    names = form.names

    def submit(written: str, *values: Any) -> Any:
        """The ticket is what the page's script says of itself: which tab it is, and a key of this one click."""
        ticket = json.loads(written)
        client, key = str(ticket["client"])[:64], str(ticket["key"])[:64]
        once = f"page:{client}:{key}"  # the same click, sent twice, is one job
        try:
            settings = app.settings.current
            wanted = requests(dict(zip(names, values, strict=True)), ticket)
            for number, request in enumerate(wanted):
                numbered = f"{once}:{number}" if number else once
                app.queue.submit(request, settings, source="page", client=client, key=numbered)
        except ValidationError as error:
            return reply(key=key, problems=problems_of(error))
        except ValueError as error:  # the queue's own refusals: no such checkpoint, too many jobs waiting
            return reply(key=key, problems=[sentence(str(error))])
        except sqlite3.Error as error:
            log.error("the job database failed", exc_info=error)
            return reply(key=key, problems=[sentence(DATABASE_FAILED)])
        return reply(key=key, jobs=len(wanted))

    inputs = [wires.ticket, *form.components()]
    generate.click(submit, inputs, [wires.reply], **EACH)
