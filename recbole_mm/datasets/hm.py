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

from recbole_mm.datasets.assemble import INTER_TYPES, RawDataset, Table
from recbole_mm.datasets.base import IMAGES, Converter, Option
from recbole_mm.datasets.raw import Column
from recbole_mm.errors import DataError

TRANSACTIONS = ("inter_2y_core.csv*", "transactions_train.csv", "transactions_train.csv.gz")

_INTER = {
    "user_id": Column("id", ("customer_id",)),
    "item_id": Column("id", ("article_id",)),
    "timestamp": Column("time", ("t_dat",)),
    "price": Column("number", required=False),
    "sales_channel_id": Column("id", required=False),
}
_INTER_TYPES = INTER_TYPES | {"price": "float", "sales_channel_id": "token"}
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


class HM(Converter):
    """The purchases, articles and pictures of H&M."""

    name = "hm"
    options = (
        Option(
            "--transactions",
            "file of purchases in --source (default: inter_2y_core.csv, else transactions_train.csv)",
            "FILE",
        ),
        IMAGES,
    )

    def read(self, transactions: str | None = None, images: str | None = None) -> RawDataset:
        """Read purchases and articles.

        Args:
            transactions: file of purchases; by default the first of `TRANSACTIONS` that is there.
            images: folder of images; `images/` of the source by default.

        Raises:
            DataError: a file is missing or malformed.
        """
        purchases = self.find(transactions, TRANSACTIONS, "--transactions")
        if purchases is None:
            patterns = ("inter_*.csv*", "transactions_*.csv*")
            there = sorted(path.name for pattern in patterns for path in self.source.glob(pattern))
            advice = f"; choose with --transactions: {', '.join(there)}" if there else ""
            raise DataError(f"{self.source}: no inter_2y_core.csv or transactions_train.csv[.gz]{advice}")
        articles = self.find(None, ("articles.csv", "articles.csv.gz"), "--source")
        if articles is None:
            raise DataError(f"{self.source}: no articles.csv[.gz], the catalogue of articles")
        inter = self.table(purchases, _INTER)
        columns = {"item_id": Column("id", ("article_id",)), "prod_name": Column("text")}
        columns |= {field: Column("text", required=False) for field in (*_CATEGORIES, "detail_desc")}
        item = self.catalogue(articles, columns)
        types = {field: "token_seq" if field in ("prod_name", "detail_desc") else "token" for field in item}
        return RawDataset(
            inter=Table.of(inter, _INTER_TYPES),
            item=Table(item, types),
            images=self.images(images, ("images",)),
            text_fields=[field for field in _TEXT_FIELDS if field in types],
            features=[field for field in _FEATURES if field in types],
            files=(purchases.name, articles.name),
        )
