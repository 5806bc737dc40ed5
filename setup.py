"""Packaging of recbole_mm. Exact versions that are tested together live in constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "recbole_mm" / "__init__.py").read_text(encoding="utf-8"))[1]

# RecBole itself is not listed: its metadata pins a ray that no longer imports, so it is installed with --no-deps
# (see docs/installation.md). What it truly needs is listed here.
RECBOLE_NEEDS = [
    "numpy>=2.0,<3",
    "scipy>=1.13,<2",
    "pandas>=2.2,<3",  # RecBole assigns through chained indexing, which pandas 3 ignores
    "scikit-learn>=1.5",
    "tensorboard>=2.17",
    "tqdm>=4.66",
    "colorlog>=6.8",
    "colorama>=0.4.6",
    "tabulate>=0.9",
    "texttable>=1.7",
    "plotly>=5.22",
    "psutil>=5.9",
]

setup(
    name="recbole_mm",
    version=VERSION,
    description="RecBole made multimodal: Molar and other multimodal LLM recommenders under RecBole's own full ranking",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11,<3.14",
    packages=[*find_packages(include=["recbole_mm", "recbole_mm.*"]), "recbole_mm.properties"],
    package_dir={"recbole_mm.properties": "properties"},
    package_data={
        "recbole_mm": ["py.typed"],
        "recbole_mm.properties": ["*.yaml", "*/*.yaml"],
        "recbole_mm.reporting": ["page.html"],
        "recbole_mm.serving": ["page.html"],
    },
    install_requires=[
        *RECBOLE_NEEDS,
        "torch>=2.6",
        "transformers>=5.0,<6",
        "peft>=0.17",
        "accelerate>=1.0",
        "sentence-transformers>=6.0",
        "tokenizers>=0.21",
        "filelock>=4.2",
        "huggingface_hub>=1.0",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "httpx2>=2.12,<3",
        "openai>=3.30,<4",
        "anyio>=4.10,<5",
        "requests>=2.32",
        "urllib3>=2.3",
        "safetensors>=0.5",
        "threadpoolctl>=3.5",
        "pillow>=10.4",
        "pyyaml>=6.0",
        "pyarrow>=16",
        "ray[data,train,tune]>=2.51",
    ],
    extras_require={
        "gguf": ["gguf>=0.10"],
        "index": ["faiss-cpu>=1.8"],
        "mlflow": ["mlflow-skinny>=2.20"],
        "serve": [
            "fastapi>=0.160",
            "h11>=0.16",
            "prometheus-client>=0.22",
            "pydantic>=2.10",
            "starlette>=1.0",
            "uvicorn>=0.50",
        ],
        "timm": ["timm>=1.0"],
        "tune": ["optuna>=4.0"],
        "wandb": ["wandb>=0.18"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.28"],
        "dev": [
            "axe-playwright-python>=0.1.5",  # tests of pages in Chromium, where that is installed
            "build>=1.2",
            "faiss-cpu>=1.8",
            "fastapi>=0.160",
            "gguf>=0.10",
            "hypothesis>=6.100",
            "ir-measures>=0.3.7",  # holds our metrics to trec_eval's
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=0.28",
            "optuna>=4.0",
            "playwright>=1.50",
            "prometheus-client>=0.22",
            "pytest>=8.2",
            "pytest-cov>=6.0",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "setuptools>=69",
            "mypy>=1.13",
            "types-PyYAML",
            "uvicorn>=0.50",
            "transformers[serving]>=5.0,<6",  # a real server for the tests of texts
            "xllamacpp>=2026.10; sys_platform == 'linux'",  # another one: llama.cpp's
        ],
    },
    entry_points={"console_scripts": ["recbole-mm = recbole_mm.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
