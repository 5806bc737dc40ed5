"""H&M Personalized Fashion Recommendations (Kaggle 2022), whole or a sample.

Raw layout, in one folder:

    articles.csv[.gz]              article_id, prod_name, ... (25 columns; others are ignored)
    transactions_train.csv[.gz]    t_dat (YYYY-MM-DD), customer_id, article_id, price, sales_channel_id;
                                   or a sample of it: inter_2y_core.csv, or the file given with --transactions
    images/<article_id>.jpg        or Kaggle's images/<first three digits>/<article_id>.jpg

Article ids keep their leading zeros. A day (or time) is a unix second (UTC); purchases of one day keep the order of
the file, and repeated purchases stay (RecBole's `rm_dup_inter` removes them).
"""

from __future__ import annotations

from pathlib import Path

from recbole_mm.datasets.assemble import RawDataset, Summary, Table, write_dataset
from recbole_mm.datasets.files import check_source, find_file
from recbole_mm.datasets.images import find_images
from recbole_mm.datasets.raw import Column, read_catalogue, read_table
from recbole_mm.errors import DataError

TRANSACTIONS = ("inter_2y_core.csv*", "transactions_train.csv", "transactions_train.csv.gz")

_INTER = {
    "user_id": Column("id", ("customer_id",)),
    "item_id": Column("id", ("article_id",)),
    "timestamp": Column("time", ("t_dat",)),
    "price": Column("number", required=False),
    "sales_channel_id": Column("id", required=False),
}
_INTER_TYPES = {
    "user_id": "token",
    "item_id": "token",
    "timestamp": "float",
    "price": "float",
    "sales_channel_id": "token",
}
# Names of several words stay one token each: RecBole's feature models embed them whole.
_CATEGORIES = (
    "product_code",
    "product_type_no",
    "product_type_name",
    "product_group_name",
    "graphical_appearance_no",
    "graphical_appearance_name",
    "colour_group_code",
    "colour_group_name",
    "perceived_colour_value_id",
    "perceived_colour_value_name",
    "perceived_colour_master_id",
    "perceived_colour_master_name",
    "department_no",
    "department_name",
    "index_code",
    "index_name",
    "index_group_no",
    "index_group_name",
    "section_no",
    "section_name",
    "garment_group_no",
    "garment_group_name",
)
_TEXT_FIELDS = (
    "prod_name",
    "product_type_name",
    "product_group_name",
    "graphical_appearance_name",
    "colour_group_name",
    "index_group_name",
    "section_name",
    "garment_group_name",
    "detail_desc",
)
_FEATURES = ("product_type_name", "colour_group_name", "department_name")


def convert(
    source: Path,
    out: Path,
    transactions: str | None = None,
    images: str | None = None,
    name: str | None = None,
    link: bool = False,
    force: bool = False,
) -> Summary:
    """Convert the raw layout of this module.

    Args:
        source: folder of raw files.
        out: dataset folder to write.
        transactions: file of purchases; by default the first of `TRANSACTIONS` that is there.
        images: folder of images; `images/` of `source` by default.
        name: dataset name, the name of `out` by default.
        link: hard-link images instead of copying them, where possible.
        force: replace a different dataset in `out`.

    Raises:
        DataError: a file is missing or malformed.
    """
    check_source(source)
    purchases = find_file(source, transactions, TRANSACTIONS, "--transactions")
    if purchases is None:
        there = sorted(
            path.name for pattern in ("inter_*.csv*", "transactions_*.csv*") for path in source.glob(pattern)
        )
        advice = f"; choose with --transactions: {', '.join(there)}" if there else ""
        raise DataError(f"{source}: no inter_2y_core.csv or transactions_train.csv[.gz]{advice}")
    articles = find_file(source, None, ("articles.csv", "articles.csv.gz"), "--source")
    if articles is None:
        raise DataError(f"{source}: no articles.csv[.gz], the catalogue of articles")
    notes: list[str] = []
    inter = read_table(purchases, _INTER, notes)
    columns = {"item_id": Column("id", ("article_id",)), "prod_name": Column("text")}
    columns |= {field: Column("text", required=False) for field in (*_CATEGORIES, "detail_desc")}
    item = read_catalogue(articles, columns, notes)
    types = dict.fromkeys(item.columns, "token") | {"prod_name": "token_seq"}
    if "detail_desc" in types:
        types["detail_desc"] = "token_seq"
    raw = RawDataset(
        inter=Table(inter, {field: kind for field, kind in _INTER_TYPES.items() if field in inter}),
        item=Table(item, types),
        user=None,
        images=find_images(source, images, ("images",), "--images"),
        text_fields=[field for field in _TEXT_FIELDS if field in types],
        features=[field for field in _FEATURES if field in types],
        source=source,
        converter="hm",
        files=(purchases.name, articles.name),
        notes=notes,
    )
    return write_dataset(raw, out, name, link, force)
