"""botocore's data: what S3 needs is there, Amazon's own addresses are not."""

from botocore.loaders import Loader

from dynamic_providers.store.loader import SlimLoader


def test_only_amazons_addresses_are_left_out() -> None:
    slim, full = SlimLoader(include_default_search_paths=True), Loader(include_default_search_paths=True)
    assert slim.load_service_model("s3", "service-2") == full.load_service_model("s3", "service-2")
    assert slim.load_data("endpoints") == {"partitions": []}
    assert full.load_data("endpoints")["partitions"]
