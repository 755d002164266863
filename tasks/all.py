"""Registers every task and mixture of this package: for a gin file that may be asked for any (`import tasks.all`)."""

import tasks.glue
import tasks.python_docs
import tasks.question_answering
import tasks.reasoning
import tasks.summarization
import tasks.super_glue  # noqa: F401
