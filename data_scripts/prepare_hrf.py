"""HRF (High-Resolution Fundus) → DRIVE layout."""

import sys

from drive_seg.prepare import Dataset, FileKind, main

GROUPS = ("h", "dr", "g")

DATASET = Dataset(
    name="HRF",
    description="45 photographs of 3504 x 2336 pixels: 15 of healthy eyes (h), 15 with diabetic retinopathy (dr), 15 "
    "with glaucoma (g), each annotated by one observer. Photographs without an annotation in SOURCE are left out; "
    "FOV masks that are not in SOURCE are estimated.",
    homepage="https://www5.cs.fau.de/research/data/fundus-images/",
    download="all.zip from the site of the Pattern Recognition Lab, Erlangen; SOURCE is the zip or the folder it "
    "unpacks to, with images/, manual1/ and mask/.",
    licence="CC BY 4.0 (Friedrich-Alexander-Universität Erlangen-Nürnberg)",
    reference="Budai et al., Robust vessel segmentation in fundus images, International Journal of Biomedical Imaging "
    "2013, doi:10.1155/2013/154860",
    size=(3504, 2336),
    kinds={
        "images": FileKind(r"images/(?P<case>\d\d_(h|dr|g))\.jpg", "images/{case}.jpg"),
        "1st_manual": FileKind(
            r"manual1/(?P<case>\d\d_(h|dr|g))\.tif", "manual1/{case}.tif", required_in=(), some=True
        ),
        "mask": FileKind(r"mask/(?P<case>\d\d_(h|dr|g))_mask\.tif", "mask/{case}_mask.tif", required_in=(), some=True),
    },
    training=tuple(f"{eye:02d}_{group}" for group in GROUPS for eye in (7, 8, 9, 11, 12, 13, 14, 15)),
    validation=tuple(f"{eye:02d}_{group}" for group in GROUPS for eye in (6, 10)),
    test=tuple(f"{eye:02d}_{group}" for group in GROUPS for eye in (1, 2, 3, 4, 5)),
    split="HRF has no official one. Of each group, 01 to 05 are test cases, 06 and 10 are held out for validation, "
    "the others are for training.",
)

if __name__ == "__main__":
    sys.exit(main(DATASET))
