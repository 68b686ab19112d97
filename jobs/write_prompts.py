"""Write a bank of descriptive prompts for every product, scored, checked, cached and open to a person's edits.

python jobs/write_prompts.py --objects "pill bottle, M4 screw" --llm REF --output URL [--notes FILE] [--review] [...]
REF: a model for vLLM, openai:MODEL@BASE_URL, recorded:FILE, or builtin
"""

import sys

from zsad.cli import run_job
from zsad.distributed.write_prompts import write_prompts
from zsad.prompts.write_config import WritePromptsConfig


def main(config: WritePromptsConfig) -> None:
    """Run it."""
    write_prompts(config)


if __name__ == "__main__":
    sys.exit(run_job(WritePromptsConfig, main))
