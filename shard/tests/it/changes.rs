//! Changes of a dataset: by rows that need it, by its unit, by hand; and their effect on readers and publishers.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch};
use tonic::transport::Channel;
use trellis_proto::{
    Code, DatasetSpec, Error, FieldType, Result,
    name::FieldName,
    pb::{self, shard_client::ShardClient},
    spec::FieldSpec,
};

use crate::support::*;

type Client = ShardClient<Channel>;

const DATASET: &str = "d.a";

fn field(name: &str, data_type: FieldType) -> FieldSpec {
    FieldSpec { name: FieldName::new(name).unwrap(), data_type, nullable: true }
}

fn with_fields(fields: Vec<FieldSpec>) -> DatasetSpec {
    DatasetSpec { fields, ..spec(DATASET) }
}

fn whole_numbers() -> DatasetSpec {
    with_fields(vec![field("value", FieldType::Int64)])
}

/// Rows (ts, value) of the symbol A, with the value as a whole number.
async fn import_whole(client: &mut Client, rows: &[(i64, i64)]) -> Result<pb::PublishAck> {
    let floats: Vec<Row> = rows.iter().map(|row| ("A", row.0, 0.0)).collect();
    let mut columns = batch(&floats).columns().to_vec();
    columns[2] = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)));
    let rows = RecordBatch::try_new(whole_numbers().rows_schema(), columns).unwrap();
    send(client, import_header(&whole_numbers()), &[rows]).await
}

async fn describe(client: &mut Client) -> pb::DatasetDescription {
    let said = client.describe(pb::ShardDescribeRequest::default()).await.unwrap().into_inner();
    said.datasets.into_iter().find(|d| d.spec.as_ref().unwrap().dataset == DATASET).unwrap()
}

async fn fields(client: &mut Client) -> Vec<(String, FieldType)> {
    let spec = DatasetSpec::try_from(describe(client).await.spec.unwrap()).unwrap();
    spec.fields.iter().map(|f| (f.name.to_string(), f.data_type)).collect()
}

async fn alter(client: &mut Client, change: pb::AlterDatasetRequest) -> Result<pb::DatasetChange> {
    let change = pb::AlterDatasetRequest { dataset: DATASET.to_owned(), by: "ada".to_owned(), ..change };
    client.alter_dataset(change).await.map(tonic::Response::into_inner).map_err(|s| Error::from_status(&s))
}

async fn drop_it(client: &mut Client, id: &str) -> Result<pb::DatasetChange> {
    let request =
        pb::DropDatasetRequest { dataset: DATASET.to_owned(), id: id.to_owned(), by: "ada".to_owned() };
    client.drop_dataset(request).await.map(tonic::Response::into_inner).map_err(|s| Error::from_status(&s))
}

fn rename(from: &str, to: &str) -> pb::AlterDatasetRequest {
    let rename = vec![pb::FieldRename { from: from.to_owned(), to: to.to_owned() }];
    pb::AlterDatasetRequest { rename, ..pb::AlterDatasetRequest::default() }
}

fn widen() -> pb::AlterDatasetRequest {
    let widen = vec![pb::FieldWidening { field: "value".to_owned(), r#type: pb::FieldType::Float64.into() }];
    pb::AlterDatasetRequest { widen, ..pb::AlterDatasetRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_needs_a_wider_type_makes_it_so_in_the_commit_of_its_rows() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let mut other = Served::local(lake.path()).await;
    import_whole(&mut served.client, &[(day(1), 10), (day(2), 11)]).await.unwrap();
    let before = describe(&mut other.client).await;
    let ack = import(&mut served.client, DATASET, &[("A", day(3), 11.25)]).await.unwrap();
    assert_eq!(ack.version, before.version + 1);
    let now = [(day(1), 10.0), (day(2), 11.0), (day(3), 11.25)];
    for client in [&mut served.client, &mut other.client] {
        assert_eq!(read(client, DATASET, "A").await, now);
        assert_eq!(fields(client).await, [("value".to_owned(), FieldType::Float64)]);
        assert_ne!(describe(client).await.schema, before.schema);
    }
    // whole numbers fit the widened dataset, and sending an import again is a duplicate
    let again = import_whole(&mut served.client, &[(day(4), 12)]).await.unwrap();
    assert_eq!(again.version, ack.version + 1);
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    assert_eq!(read(&mut served.client, DATASET, "A").await[3], (day(4), 12.0));
    assert_eq!(read(&mut served.client, DATASET, "A").await[..3], now);
    served.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_number_that_no_float_is_keeps_its_type() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    import_whole(client, &[(day(0), 1)]).await.unwrap();
    import_whole(client, &[(day(1), 9_007_199_254_740_993)]).await.unwrap();
    let before = describe(client).await;
    for refused in [
        import(client, DATASET, &[("A", day(2), 0.5)]).await.unwrap_err(),
        alter(client, widen()).await.unwrap_err(),
    ] {
        assert_eq!(refused.code(), Code::Conflict);
        assert!(refused.message().contains("9007199254740993 (A at 1970-01-02"), "{refused}");
    }
    assert_eq!(describe(client).await, before);
    assert_eq!(data_files(lake.path(), DATASET).len(), 2, "what was written in vain is gone");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_field_is_missing_in_the_rows_before_it() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    import(client, DATASET, &[("A", day(1), 1.0)]).await.unwrap();
    let old_files = data_files(lake.path(), DATASET);
    let wide = with_fields(vec![field("ok", FieldType::Bool), field("value", FieldType::Float64)]);
    let mut columns = batch(&[("A", day(2), 2.0)]).columns().to_vec();
    columns.insert(2, Arc::new(BooleanArray::from(vec![true])) as ArrayRef);
    let rows = RecordBatch::try_new(wide.rows_schema(), columns).unwrap();
    send(client, import_header(&wide), &[rows]).await.unwrap();
    assert_eq!(
        fields(client).await,
        [("value".to_owned(), FieldType::Float64), ("ok".to_owned(), FieldType::Bool)],
        "what is new comes last"
    );
    assert_eq!(read(client, DATASET, "A").await, [(day(1), 1.0), (day(2), 2.0)]);
    assert!(data_files(lake.path(), DATASET).contains(&old_files[0]), "nothing was written anew");
    let ok = pb::ChunkRange { fields: vec!["ok".to_owned()], ..range(DATASET, "A") };
    let answers = answers(client, vec![ok], pb::FetchOrder::OldestFirst).await;
    assert!(answers.iter().all(|answer| matches!(answer, trellis_proto::fetch::Answer::Batch(_))));
    // rows without the field are refused, because leaving it out by mistake would make its values missing
    let refused = import(client, DATASET, &[("A", day(3), 3.0)]).await.unwrap_err();
    assert_eq!(refused.code(), Code::Conflict, "{refused}");
    assert!(refused.message().contains("it has the field `ok bool`, which is not given"), "{refused}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alteration_is_one_version_for_everybody_and_is_made_once() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let mut other = Served::local(lake.path()).await;
    import_whole(&mut served.client, &[(day(1), 10)]).await.unwrap();
    let before = describe(&mut other.client).await;
    let change = pb::AlterDatasetRequest {
        id: "change-1".to_owned(),
        widen: vec![pb::FieldWidening { field: "price".to_owned(), r#type: pb::FieldType::Float64.into() }],
        add: vec![(&field("note", FieldType::String)).into()],
        calendar: Some("XNYS".to_owned()),
        ..rename("value", "price")
    };
    let done = alter(&mut served.client, change.clone()).await.unwrap();
    assert_eq!((done.version, done.files_rewritten), (before.version + 1, 1));
    assert_eq!(alter(&mut served.client, change.clone()).await.unwrap(), done, "asked again, answered again");
    // the head that passed the alteration on tells the other shards
    let told = pb::SyncRequest { dataset: DATASET.to_owned(), version: done.version };
    other.client.sync(told).await.unwrap();
    for client in [&mut served.client, &mut other.client] {
        assert_eq!(
            fields(client).await,
            [("price".to_owned(), FieldType::Float64), ("note".to_owned(), FieldType::String)]
        );
        assert_eq!(describe(client).await.spec.unwrap().calendar, "XNYS");
        let price = pb::ChunkRange { fields: vec!["price".to_owned()], ..range(DATASET, "A") };
        let fetched = fetch(client, vec![price], pb::FetchOrder::OldestFirst).await.remove(0);
        assert_eq!(fetched.latest(), [(day(1), 10.0)]);
        // a head that planned before the change is told so, whatever it reads
        for schema in [before.schema, 1] {
            let stale = pb::ChunkRange { schema, ..range(DATASET, "A") };
            let refused = fetch(client, vec![stale], pb::FetchOrder::OldestFirst).await.remove(0);
            assert_eq!(refused.failures[0].code(), Code::StaleSchema);
        }
    }
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    assert_eq!(alter(&mut served.client, change).await.unwrap(), done);
    for (change, code) in [
        (rename("value", "other"), Code::UnknownField),
        (pb::AlterDatasetRequest::default(), Code::InvalidRequest),
        (
            pb::AlterDatasetRequest {
                drop: vec!["price".to_owned(), "note".to_owned()],
                ..Default::default()
            },
            Code::InvalidRequest,
        ),
    ] {
        assert_eq!(alter(&mut served.client, change).await.unwrap_err().code(), code);
    }
    served.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_dataset_is_gone_for_everybody_and_its_name_is_free() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let mut other = Served::local(lake.path()).await;
    let first = {
        let header = pb::PublishHeader {
            run_id: "same".to_owned(),
            watermark_ns: Some(day(9)),
            ..import_header(&spec(DATASET))
        };
        send(&mut served.client, header, &[batch(&[("A", day(1), 1.0)])]).await.unwrap()
    };
    assert_eq!(read(&mut other.client, DATASET, "A").await.len(), 1);
    let dropped = drop_it(&mut served.client, "drop-1").await.unwrap();
    assert_eq!(dropped.version, first.version + 1);
    for round in 0..2 {
        for client in [&mut served.client, &mut other.client] {
            let gone = client.symbols(pb::SymbolsRequest { dataset: DATASET.to_owned() }).await.unwrap_err();
            assert_eq!(Error::from_status(&gone).code(), Code::UnknownDataset);
            assert!(describe(client).await.dropped, "a head that was away learns of it");
        }
        assert_eq!(
            drop_it(&mut served.client, "drop-1").await.unwrap(),
            dropped,
            "asked again, answered again"
        );
        assert_eq!(drop_it(&mut served.client, "drop-2").await.unwrap_err().code(), Code::UnknownDataset);
        if round == 0 {
            served.stop().await;
            served = Served::local(lake.path()).await;
        }
    }
    assert_eq!(data_files(lake.path(), DATASET).len(), 1, "what it had stays in the lake");
    // another dataset takes the name: it has another type, a later version, and none of the old run ids
    let made = import_whole(&mut served.client, &[(day(2), 5)]).await.unwrap();
    assert_eq!(made.version, dropped.version + 1);
    // the answer to the drop may have been lost: the same request again does not drop the new dataset
    for client in [&mut served.client, &mut other.client] {
        assert_eq!(drop_it(client, "drop-1").await.unwrap(), dropped);
    }
    assert_eq!(fields(&mut other.client).await, [("value".to_owned(), FieldType::Int64)]);
    let said = describe(&mut other.client).await;
    assert_eq!((said.rows, said.watermark_ns, said.dropped), (1, None, false));
    let header = pb::PublishHeader { run_id: "same".to_owned(), ..import_header(&spec(DATASET)) };
    let again = send(&mut served.client, header, &[batch(&[("A", day(1), 1.0)])]).await.unwrap();
    assert!(!again.duplicate);
    served.stop().await;
    let mut served = Served::local(lake.path()).await;
    assert_eq!(drop_it(&mut served.client, "drop-1").await.unwrap(), dropped);
    assert_eq!(read(&mut served.client, DATASET, "A").await, [(day(1), 1.0), (day(2), 5.0)]);
    served.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_widens_its_output_by_what_it_declares_and_nobody_else_changes_it() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    acquire_with(client, &whole_numbers(), "mom", false).await.unwrap();
    for refused in [alter(client, widen()).await.unwrap_err(), drop_it(client, "d").await.unwrap_err()] {
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
        assert!(refused.message().contains("is the output of unit mom"), "{refused}");
    }
    let wide = with_fields(vec![field("rank", FieldType::Int64), field("value", FieldType::Float64)]);
    // the declaration of another unit changes nothing
    let other = acquire_with(client, &wide, "other", false).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert_eq!(fields(client).await, [("value".to_owned(), FieldType::Int64)]);
    let lease = acquire_with(client, &wide, "mom", false).await.unwrap();
    assert_eq!(
        fields(client).await,
        [("value".to_owned(), FieldType::Float64), ("rank".to_owned(), FieldType::Int64)]
    );
    let mut columns = batch(&[("A", day(1), 0.5)]).columns().to_vec();
    columns.insert(2, Arc::new(Int64Array::from(vec![7])) as ArrayRef);
    let rows = RecordBatch::try_new(wide.rows_schema(), columns).unwrap();
    let header = session_header(DATASET, "mom", lease.epoch, "r1", "1970-01-02");
    send(client, header, &[rows]).await.unwrap();
    assert_eq!(read(client, DATASET, "A").await, [(day(1), 0.5)]);
    // a declaration that lacks a field or narrows one is refused with a hint
    for narrow in [whole_numbers(), spec(DATASET)] {
        let refused = acquire_with(client, &narrow, "mom", false).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidRequest);
        assert!(refused.message().starts_with("d.a exists with another schema"), "{refused}");
        assert!(refused.hint_text().contains("trellis dataset alter"), "{refused}");
    }
    served.stop().await;
}

async fn rename_to(client: &mut Client, to: &str, id: &str) -> Result<pb::DatasetChange> {
    let request = pb::RenameDatasetRequest {
        dataset: DATASET.to_owned(),
        id: id.to_owned(),
        by: "ada".to_owned(),
        to: to.to_owned(),
    };
    client.rename_dataset(request).await.map(tonic::Response::into_inner).map_err(|s| Error::from_status(&s))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renamed_dataset_is_the_same_under_another_name() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let header = pb::PublishHeader {
        run_id: "same".to_owned(),
        watermark_ns: Some(day(9)),
        ..import_header(&spec(DATASET))
    };
    send(&mut served.client, header, &[batch(&[("A", day(1), 1.0)])]).await.unwrap();
    let before =
        fetch(&mut served.client, vec![range(DATASET, "A")], pb::FetchOrder::OldestFirst).await.remove(0);
    let done = rename_to(&mut served.client, "d.b", "rename-1").await.unwrap();
    assert_eq!(done.dataset, "d.b");
    for _ in 0..2 {
        let client = &mut served.client;
        let now = fetch(client, vec![range("d.b", "A")], pb::FetchOrder::OldestFirst).await.remove(0);
        assert_eq!((now.rows, now.watermark), (before.rows.clone(), Some(day(9))));
        assert!(describe(client).await.dropped);
        assert_eq!(rename_to(client, "d.b", "rename-1").await.unwrap(), done, "asked again, answered again");
        assert_eq!(rename_to(client, "d.c", "rename-2").await.unwrap_err().code(), Code::UnknownDataset);
        // a run id stays used, and the same rows are still a duplicate
        let header = pb::PublishHeader { run_id: "same".to_owned(), ..import_header(&spec("d.b")) };
        let again = send(client, header.clone(), &[batch(&[("A", day(1), 1.0)])]).await.unwrap();
        assert!(again.duplicate);
        let twice = send(client, header, &[batch(&[("A", day(1), 9.0)])]).await.unwrap_err();
        assert_eq!(twice.code(), Code::Conflict);
        served.stop().await;
        served = Served::local(lake.path()).await;
    }
    // a rename to a used name leaves the dataset unchanged
    import(&mut served.client, DATASET, &[("A", day(2), 2.0)]).await.unwrap();
    assert_eq!(rename_to(&mut served.client, "d.b", "rename-3").await.unwrap_err().code(), Code::Conflict);
    import(&mut served.client, DATASET, &[("A", day(3), 3.0)]).await.unwrap();
    assert_eq!(read(&mut served.client, DATASET, "A").await.len(), 2);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_change_by_hand_took_away_comes_back_with_the_same_import() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let wide = with_fields(vec![field("value", FieldType::Float64), field("ok", FieldType::Bool)]);
    let mut columns = batch(&[("A", day(1), 1.0)]).columns().to_vec();
    columns.push(Arc::new(BooleanArray::from(vec![true])) as ArrayRef);
    let rows = RecordBatch::try_new(wide.rows_schema(), columns).unwrap();
    let attempt = |run: &str| pb::PublishHeader { run_id: run.to_owned(), ..import_header(&wide) };
    let rows = [rows];
    let first = send(&mut served.client, attempt("r1"), &rows).await.unwrap();
    assert!(send(&mut served.client, attempt("r2"), &rows).await.unwrap().duplicate);
    let gone = pb::AlterDatasetRequest { drop: vec!["ok".to_owned()], ..Default::default() };
    alter(&mut served.client, gone).await.unwrap();
    let missing = pb::Field { name: "ok".to_owned(), r#type: pb::FieldType::Bool.into(), nullable: true };
    alter(&mut served.client, pb::AlterDatasetRequest { add: vec![missing], ..Default::default() })
        .await
        .unwrap();
    for duplicate in [false, true] {
        served.stop().await;
        served = Served::local(lake.path()).await;
        let again = send(&mut served.client, attempt("r1"), &rows).await.unwrap();
        assert_eq!((again.version, again.duplicate), (first.version + 3, duplicate));
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publish_that_was_imported_over_is_not_a_duplicate_under_another_name() {
    let lake = tempfile::tempdir().unwrap();
    let mut served = Served::local(lake.path()).await;
    let client = &mut served.client;
    let rows = [batch(&[("A", day(1), 1.0)])];
    let once = |dataset: &str, run: &str| pb::PublishHeader {
        once: Some(pb::PublishOnce::default()),
        spec: Some((&spec(dataset)).into()),
        ..session_header(dataset, "mom", 0, run, "1970-01-02")
    };
    send(client, once(DATASET, "run-1"), &rows).await.unwrap();
    let nobody = pb::AcquireLeaseRequest {
        dataset: DATASET.to_owned(),
        instance: "ada".to_owned(),
        ..pb::AcquireLeaseRequest::default()
    };
    client.acquire_lease(nobody).await.unwrap();
    import(client, DATASET, &[("A", day(1), 2.0)]).await.unwrap();
    rename_to(client, "d.b", "rename-1").await.unwrap();
    let again = send(client, once("d.b", "run-2"), &rows).await.unwrap();
    assert!(!again.duplicate);
    assert_eq!(read(client, "d.b", "A").await, [(day(1), 1.0)]);
    served.stop().await;
}
