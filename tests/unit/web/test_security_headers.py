"""The security headers of responses and of pages."""

import base64
import hashlib

from fastapi.openapi.docs import get_swagger_ui_html

from service.web import security_headers


def test_what_an_answer_says_itself_goes_first() -> None:
    own = [(b"content-security-policy", b"default-src 'self'"), (b"cache-control", b"max-age=60")]
    added = security_headers.missing_headers(own)
    assert {name for name, _ in added} == {name for name, _ in security_headers.SECURITY_HEADERS}
    assert dict(security_headers.missing_headers([]))[b"cache-control"] == b"no-store"
    assert dict(security_headers.missing_headers([(b"etag", b'"1"')]))[b"cache-control"] == b"no-cache"


def test_a_page_runs_its_own_scripts_alone() -> None:
    page = bytes(get_swagger_ui_html(openapi_url="openapi.json", title="tomau").body).decode()
    script = page[page.index("<script>") + len("<script>") : page.rindex("</script>")]
    expected = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = dict(part.strip().split(" ", 1) for part in security_headers.page_content_policy(page).split(";"))
    assert policy["script-src"] == f"'self' 'sha256-{expected}'"
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert "unsafe" not in str(policy)
