"""DRIVE as distributed by its site → verified DRIVE layout with a dataset.json."""

import sys

from drive_seg.prepare import Dataset, FileKind, main

DATASET = Dataset(
    name="DRIVE",
    description="40 photographs of 565 x 584 pixels, 20 for training (21 to 40) and 20 for test (01 to 20), with FOV "
    "masks. The test annotations are not handed out today; where they are in SOURCE they are used.",
    homepage="https://drive.grand-challenge.org/",
    download="training.zip and test.zip from the site, after registration; SOURCE is the folder that holds the two, "
    "one of the two with the other beside it, or the folder they were unpacked to.",
    licence="for research and education, no redistribution: see the terms on the site",
    reference="Staal et al., Ridge-based vessel segmentation in color images of the retina, IEEE Transactions on "
    "Medical Imaging 23(4), 2004, doi:10.1109/TMI.2004.825627",
    size=(565, 584),
    kinds={
        "images": FileKind(
            r"(training/images/(?=\d\d_training)|test/images/(?=\d\d_test))(?P<case>\d\d)_\w+\.(tif|tiff|png)",
            "{folder}/images/{case}_{folder}.tif",
        ),
        "1st_manual": FileKind(
            r"(training|test)/1st_manual/(?P<case>\d\d)_manual1\.(gif|png|tif)",
            "{folder}/1st_manual/{case}_manual1.gif",
            required_in=("training",),
        ),
        "2nd_manual": FileKind(
            r"(training|test)/2nd_manual/(?P<case>\d\d)_manual2\.(gif|png|tif)",
            "{folder}/2nd_manual/{case}_manual2.gif",
            required_in=(),
        ),
        "mask": FileKind(
            r"(training|test)/mask/(?P<case>\d\d)_(training|test)_mask\.(gif|png|tif)",
            "{folder}/mask/{case}_{folder}_mask.gif",
        ),
    },
    training=tuple(f"{case:02d}" for case in range(21, 41) if case not in (25, 30, 35, 40)),
    validation=("25", "30", "35", "40"),
    test=tuple(f"{case:02d}" for case in range(1, 21)),
    split="The official test cases 01 to 20. Of the official training cases 21 to 40, every fifth (25, 30, 35, 40) "
    "is held out for validation.",
    archives=("training.zip", "test.zip"),
    unchanged=True,
)

if __name__ == "__main__":
    sys.exit(main(DATASET))
