//! The corpus of forms that two readers could take differently: each with our verdict and hyper's, as written down beside it.

mod common;

use common::corpus;
use common::verdict::{hyper_of_requests, hyper_of_responses, ours_of_requests, ours_of_responses};
use http::Method;

#[test]
fn requests_are_judged_as_the_corpus_says() {
    let forms = corpus::read("requests.txt");
    assert!(forms.len() > 60, "{}", forms.len());
    let mut wrong = Vec::new();
    for form in forms {
        let verdicts = (ours_of_requests(&form.bytes).join(" + "), hyper_of_requests(&form.bytes).join(" + "));
        if verdicts != (form.ours.clone(), form.hyper.clone()) {
            wrong.push(format!("{}\nours {}\nhyper {}\n", form.name, verdicts.0, verdicts.1));
        }
    }
    assert!(wrong.is_empty(), "seen:\n{}", wrong.join("\n"));
}

#[test]
fn responses_are_judged_as_the_corpus_says() {
    let forms = corpus::read("responses.txt");
    assert!(forms.len() > 40, "{}", forms.len());
    let mut wrong = Vec::new();
    for form in forms {
        let to = Method::from_bytes(form.to.as_bytes()).unwrap();
        let verdicts =
            (ours_of_responses(&form.bytes, &to).join(" + "), hyper_of_responses(&form.bytes, &to).join(" + "));
        if verdicts != (form.ours.clone(), form.hyper.clone()) {
            wrong.push(format!("{}\nours {}\nhyper {}\n", form.name, verdicts.0, verdicts.1));
        }
    }
    assert!(wrong.is_empty(), "seen:\n{}", wrong.join("\n"));
}
