"""Entries of a page mean what botocore would make of them, and what is odd is left to botocore."""

from datetime import UTC, datetime

import pytest

from zsad.storage.s3_pages import take_entries

ENTRY = (
    "<Contents><Key>a&amp;b/größe.jpg</Key><LastModified>2026-03-01T10:00:00.250Z</LastModified>"
    "<ETag>&quot;e1&quot;</ETag><Size>12</Size><StorageClass>STANDARD</StorageClass></Contents>"
)
NAMESPACE = ' xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'


def taken(body, status=200):
    response, customized = {"status_code": status, "body": body}, {}
    take_entries(response_dict=response, customized_response_dict=customized, operation_model=None)
    return response["body"], customized


@pytest.mark.parametrize("namespace", ["", NAMESPACE])
def test_entries_are_taken_out_and_the_rest_stays(namespace):
    page = f"<ListBucketResult{namespace}><IsTruncated>true</IsTruncated>{ENTRY}</ListBucketResult>"
    body, customized = taken(page.encode())
    assert customized == {
        "Contents": [
            {
                "Key": "a&b/größe.jpg",
                "Size": 12,
                "LastModified": datetime(2026, 3, 1, 10, 0, 0, 250_000, tzinfo=UTC),
                "ETag": '"e1"',
            }
        ]
    }
    assert b"true" in body
    assert b"Contents" not in body


@pytest.mark.parametrize(
    "body",
    [
        "<Error><Code>SlowDown</Code></Error>",
        "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>",
        "<ListBucketResult><Contents><Key>a</Key>",
        f"<ListBucketResult>{ENTRY.replace('12', 'twelve')}</ListBucketResult>",
        f"<ListBucketResult>{ENTRY.replace('.250Z', '')}</ListBucketResult>",
        f"<ListBucketResult>{ENTRY.replace('Size', 'Bytes')}</ListBucketResult>",
        f"<Other>{ENTRY}</Other>",
        "",
    ],
)
def test_anything_else_is_left_alone(body):
    assert taken(body.encode()) == (body.encode(), {})


def test_answers_that_are_no_success_are_left_alone():
    body = f"<ListBucketResult>{ENTRY}</ListBucketResult>".encode()
    assert taken(body, status=503) == (body, {})
