"""Registers every task and mixture of this package: `import tasks.all` in a gin file."""

import tasks.c4
import tasks.files
import tasks.glue
import tasks.installed_docs
import tasks.multilingual
import tasks.python_docs
import tasks.question_answering
import tasks.reasoning
import tasks.summarization
import tasks.super_glue  # noqa: F401
