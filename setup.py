"""Put the workbook's files into the wheel. Everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FILES = ("params.yaml", "budgets.yaml", "papers", "weights")


class WithWorkbook(build_py):
    """Settings, budgets, papers and small weights become `replicate/workbook/`, which an installed package
    reads.
    """

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # an editable install reads the checkout's own files
        target = Path(self.build_lib, "replicate", "workbook")
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for name in FILES:
            source = ROOT / name
            if source.exists():
                copy = shutil.copytree if source.is_dir() else shutil.copyfile
                copy(source, target / name)


setup(cmdclass={"build_py": WithWorkbook})
