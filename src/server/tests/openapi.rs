//! `/openapi.json` against what is served.

use super::*;
use crate::server::openapi::{Carries, OPERATIONS, Operation};

#[tokio::test]
async fn the_openapi_document_lists_what_is_served() {
    let fixture = fixture(&[]);
    for Operation { path, method, .. } in OPERATIONS {
        let path = path.replace("{table}", "general_documents").replace(['{', '}'], "");
        let request =
            Request::builder().method(method.to_uppercase().as_str()).uri(&path).body(Body::empty());
        let (status, body) = send(&fixture.state, request.expect("request")).await;
        assert_ne!(status, StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert!(!body.contains("there is no such path"), "{method} {path}");
    }
}

#[test]
fn every_route_is_in_the_document() {
    let shape = |path: &str| {
        let parts = path.split('/').map(|part| if part.starts_with('{') { "{}" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let documented: Vec<String> = OPERATIONS.iter().map(|operation| shape(operation.path)).collect();
    let served: Vec<&str> = include_str!("../mod.rs")
        .split(".route(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(served.len() > 30, "{served:?}");
    let missing: Vec<_> = served.iter().filter(|path| !documented.contains(&shape(path))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn the_openapi_document_describes_every_body_and_status() {
    let fixture = fixture(&[]);
    let (_, document) = get(&fixture.state, "/openapi.json").await;
    for Operation { path, method, carries, .. } in OPERATIONS {
        let operation = &document["paths"][path][method];
        assert!(
            operation["responses"]["500"].is_object() && operation["responses"]["405"].is_object(),
            "{path}"
        );
        let nothing = *carries == Carries::Nothing;
        assert_eq!(nothing, operation["requestBody"].is_null(), "{path}");
        if let Carries::Json(name) = carries {
            assert!(operation["responses"]["200"]["content"].is_object(), "{path}");
            assert!(document["components"]["schemas"][name]["properties"].is_object(), "{name}");
            assert!(operation["responses"]["413"].is_object() && operation["responses"]["415"].is_object());
        }
    }
    let text = document.to_string();
    for named in text.split("#/components/schemas/").skip(1) {
        let name = named.split('"').next().expect("a name");
        assert!(document["components"]["schemas"][name].is_object(), "{name}");
    }
}

#[tokio::test]
async fn the_openapi_document_types_every_parameter() {
    let fixture = fixture(&[]);
    let (_, document) = get(&fixture.state, "/openapi.json").await;
    for Operation { path, method, .. } in OPERATIONS {
        let parameters = document["paths"][path][method]["parameters"].as_array().expect("a list");
        for parameter in parameters {
            assert!(parameter["schema"]["type"].is_string(), "{path}: {parameter}");
        }
        let in_path = parameters.iter().filter(|parameter| parameter["in"] == "path").count();
        assert_eq!(in_path, path.matches('{').count(), "{path}");
    }
    // What the handlers of tables read is what the document names.
    let names = |path: &str| -> Vec<String> {
        let all = document["paths"][path]["get"]["parameters"].as_array().expect("a list");
        all.iter().filter_map(|parameter| parameter["name"].as_str().map(str::to_owned)).collect()
    };
    let expected =
        ["table", "limit", "offset", "columns", "filter", "version", "customer_id", "X-Customer-Id"];
    assert_eq!(names("/delta/query/{table}"), expected);
}
