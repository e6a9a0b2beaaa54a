//! AUTH, of queries: what belongs to one tenant does not exist for another.

use gauntlet_harness::case::{CaseResult, Ctx, equal, silent};
use gauntlet_harness::subject::Capability;

use super::CaseRow;
use super::support::{DOCUMENTS, QUERIES, document, healthy, question, text};

const HERS: &str = "sk-canary-tenant-curie-5d0c7b1e";
const HIS: &str = "sk-canary-tenant-bohr-91aa4f3c";

pub(super) const CASES: &[CaseRow] = &[CaseRow {
    id: "AUTH-02",
    why: "Ids travel in logs and links; a gateway that checks the key but not the owner shows everybody's questions to every customer.",
    shown: "One tenant stores a document and asks; the other reads, lists, deletes and asks the same, and gets what he would get if they did not exist.",
    remedy: "Put the tenant into the condition of every statement, and answer 404 for what is somebody else's.",
    needs: &[Capability::Query, Capability::Store, Capability::Keys],
    spec: || super::support::query().key("curie", HERS).key("bohr", HIS),
    run: &auth_02,
}];

async fn auth_02(ctx: &Ctx) -> CaseResult {
    // given
    healthy(ctx)?;
    let (she, he) = (ctx.client.with_bearer(HERS), ctx.client.with_bearer(HIS));
    let stored = she.post(DOCUMENTS, document()).await?;
    equal(
        "document.status",
        "the status of a document that is handed in",
        201,
        stored.status,
    )?;
    let document = format!("{DOCUMENTS}/{}", text(&stored.json(), "id"));
    let told = she.post(QUERIES, question(ctx)).await?.json();
    equal(
        "query.status",
        "the status of her query",
        "complete",
        text(&told, "status"),
    )?;
    let query = format!("{QUERIES}/{}", text(&told, "id"));
    // when
    let unknown = he
        .get(&format!("{QUERIES}/01890000-0000-7000-8000-000000000000"))
        .await?;
    let seen = he.get(&query).await?;
    let listed = he.get(QUERIES).await?.json();
    let read = he.get(&document).await?;
    let deleted = he.request("DELETE", &document, &[], b"").await?;
    let asked = he.post(QUERIES, question(ctx)).await?.json();
    // then
    equal(
        "foreign_query.read",
        "the status and code that he gets for her query",
        (404, unknown.error_code()),
        (seen.status, seen.error_code()),
    )
    .map_err(silent)?;
    equal(
        "foreign_query.listed",
        "the number of queries that he can list",
        Some(0),
        listed["total"].as_u64(),
    )
    .map_err(silent)?;
    equal(
        "foreign_document.status",
        "the statuses of reading and deleting her document, for him",
        (404, 404),
        (read.status, deleted.status),
    )
    .map_err(silent)?;
    equal(
        "foreign_document.sources",
        "the number of her passages among his sources",
        Some(0),
        asked["sources"].as_array().map(Vec::len),
    )
    .map_err(silent)?;
    equal(
        "own_query.read",
        "her query, read by her,",
        &told,
        &she.get(&query).await?.json(),
    )?;
    equal(
        "own_document.status",
        "the status of her document, read by her,",
        200,
        she.get(&document).await?.status,
    )
}
