"""Synthetic fundus photographs with exact annotations, in the DRIVE layout."""

import argparse
import sys
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from drive_seg.errors import DriveSegError
from drive_seg.phantom import write_phantom_dataset

DESCRIPTION = """\
Make up fundus photographs with exact annotations and write them in the DRIVE layout.

For trying things out without a dataset: anything that reads DRIVE reads the folder. Nobody's eye is
in it, so it may be handed on freely. Figures measured on it say nothing about real photographs.
"""

EPILOG = """\
what is written:
  training/images/21_training.tif       photograph, RGB
  training/1st_manual/21_manual1.gif    vessels, 0 and 255
  training/mask/21_training_mask.gif    field of view, 0 and 255
  training/av/21_av.png                 0 background, 1 artery, 2 vein (the one on top where they cross)
  test/...                              the same from 01 on, and test/2nd_manual/01_manual2.gif: vessels as a
                                        second observer might draw them, palette indices 0 and 1

Test cases count from 01; training cases from 21, or from after the last test case if there are more than 20.
The same arguments give the same files.

examples:
  python data_scripts/make_phantom.py /tmp/phantom
  python data_scripts/make_phantom.py /tmp/small --training 8 --test 4 --width 256 --height 256
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the script with ``arguments`` (those of the command line by default) and return its exit code."""
    parser = argparse.ArgumentParser(
        description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="folder to write; an earlier run's is replaced")
    parser.add_argument("--training", type=int, default=20, help="number of training cases (default: %(default)s)")
    parser.add_argument("--test", type=int, default=20, help="number of test cases (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other eyes (default: %(default)s)")
    parser.add_argument("--width", type=int, default=565, help="in pixels, 64 or more (default: %(default)s, as DRIVE)")
    parser.add_argument(
        "--height", type=int, default=584, help="in pixels, 64 or more (default: %(default)s, as DRIVE)"
    )
    options = parser.parse_args(arguments)

    def progress(cases: Sequence[int]) -> Iterable[int]:
        return tqdm(cases, desc="phantoms", unit="case", disable=None)

    try:
        write_phantom_dataset(**vars(options), progress=progress)
    except DriveSegError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
