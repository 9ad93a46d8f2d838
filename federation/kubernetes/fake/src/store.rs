//! The objects, their versions and their history.

use std::collections::{BTreeMap, HashMap, VecDeque};

use jiff::{Timestamp, Unit};
use serde_json::{Value, json};

use crate::{
    kinds::{Kind, Scope},
    patch,
    selector::Selector,
};

/// What a write was refused for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// A change of an object.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) plural: String,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
}

type Place = (String, String, String);

#[derive(Default)]
pub(crate) struct Store {
    objects: BTreeMap<Place, Value>,
    /// What each manager applied last.
    applied: HashMap<(Place, String), Value>,
    history: VecDeque<Change>,
    /// Lists that are read in pages, as they were when they began.
    pages: HashMap<String, (u64, Vec<Value>)>,
    version: u64,
    /// What happened up to here is forgotten.
    forgotten: u64,
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        self.objects.get(&place(kind, namespace, name)).cloned()
    }

    pub(crate) fn list(&self, kind: &Kind, selector: Option<&Selector>) -> Vec<Value> {
        let of_kind = self.objects.iter().filter(|((plural, _, _), _)| *plural == id(kind)).map(|(_, object)| object);
        of_kind.filter(|object| selector.is_none_or(|selector| selector.fits(object))).cloned().collect()
    }

    /// A page of a list: objects, version, token of the next.
    pub(crate) fn page(
        &mut self,
        kind: &Kind,
        selector: &Selector,
        limit: usize,
        token: &str,
    ) -> Result<(Vec<Value>, u64, String), Refusal> {
        let (version, mut rest) = match token {
            "" => (self.version, self.list(kind, Some(selector))),
            token => self.pages.remove(token).ok_or_else(|| Refusal::expired("the continue token is too old"))?,
        };
        if limit == 0 || rest.len() <= limit {
            return Ok((rest, version, String::new()));
        }
        let later = rest.split_off(limit);
        let token = format!("{version}-{}-{}", id(kind), later.len());
        self.pages.insert(token.clone(), (version, later));
        Ok((rest, version, token))
    }

    /// What happened after `version`; a refusal if that is forgotten.
    pub(crate) fn since(&self, version: u64) -> Result<Vec<Change>, Refusal> {
        if version < self.forgotten {
            return Err(Refusal::expired(&format!("too old resource version: {version} ({})", self.forgotten)));
        }
        Ok(self.history.iter().filter(|change| change.version > version).cloned().collect())
    }

    pub(crate) fn compact(&mut self) {
        // Nothing is forgotten up to a version that somebody could just have read, so there must be a later one.
        self.version += 1;
        self.forgotten = self.version;
        self.history.clear();
        self.pages.clear();
    }

    /// As somebody else would write it.
    pub(crate) fn put(&mut self, kind: &Kind, mut object: Value) -> Value {
        let (namespace, name) = (text(&object, "namespace"), text(&object, "name"));
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        self.write(kind, &namespace, &name, object)
    }

    pub(crate) fn create(&mut self, kind: &Kind, namespace: &str, mut object: Value) -> Result<Value, Refusal> {
        if kind.scope == Scope::Namespaced {
            object["metadata"]["namespace"] = namespace.into();
        }
        let mut name = text(&object, "name");
        if name.is_empty() {
            name = format!("{}{}", text(&object, "generateName"), self.version + 1);
            object["metadata"]["name"] = name.clone().into();
        }
        if self.get(kind, namespace, &name).is_some() {
            return Err(Refusal::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", id(kind))));
        }
        if kind.has_status {
            object.as_object_mut().map(|object| object.remove("status"));
        }
        Ok(self.write(kind, namespace, &name, object))
    }

    /// PUT of an object or of its status.
    pub(crate) fn replace(
        &mut self,
        kind: &Kind,
        (namespace, name): (&str, &str),
        object: Value,
        is_status: bool,
    ) -> Result<Value, Refusal> {
        let before = self.get(kind, namespace, name).ok_or_else(|| Refusal::not_found(kind, name))?;
        check_version(kind, &before, &object)?;
        let after = match (kind.has_status, is_status) {
            (false, _) => object,
            (true, true) => with(before, "status", object.get("status")),
            (true, false) => with(object, "status", before.get("status")),
        };
        Ok(self.write(kind, namespace, name, after))
    }

    /// A merge patch of an object or of its status.
    pub(crate) fn merge(
        &mut self,
        kind: &Kind,
        (namespace, name): (&str, &str),
        patch: &Value,
        is_status: bool,
    ) -> Result<Value, Refusal> {
        let before = self.get(kind, namespace, name).ok_or_else(|| Refusal::not_found(kind, name))?;
        check_version(kind, &before, patch)?;
        let mut after = before;
        patch::merge(&mut after, patch);
        after["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        self.replace(kind, (namespace, name), after, is_status)
    }

    /// Server-side apply of an object or of its status.
    pub(crate) fn apply(
        &mut self,
        kind: &Kind,
        (namespace, name): (&str, &str),
        manager: &str,
        now: Value,
        is_status: bool,
    ) -> Result<Value, Refusal> {
        let found = self.get(kind, namespace, name);
        if found.is_none() && is_status {
            return Err(Refusal::not_found(kind, name));
        }
        let fresh = found.is_none();
        let mut object = found.unwrap_or_else(|| json!({ "metadata": { "name": name } }));
        check_version(kind, &object, &now)?;
        let part = if is_status { format!("{manager}/status") } else { manager.to_owned() };
        let owner = (place(kind, namespace, name), part);
        let before = self.applied.get(&owner).cloned().unwrap_or(Value::Null);
        patch::apply(&mut object, &before, &now);
        object["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        let written = match fresh {
            true => self.create(kind, namespace, object)?,
            false => self.replace(kind, (namespace, name), object, is_status)?,
        };
        self.applied.insert(owner, now);
        Ok(written)
    }

    /// DELETE: objects with finalisers stay until those are gone.
    pub(crate) fn delete(
        &mut self,
        kind: &Kind,
        (namespace, name): (&str, &str),
        preconditions: &Value,
    ) -> Result<Value, Refusal> {
        let mut object = self.get(kind, namespace, name).ok_or_else(|| Refusal::not_found(kind, name))?;
        for field in ["uid", "resourceVersion"] {
            let wanted = preconditions.get(field).filter(|wanted| !wanted.is_null());
            if wanted.is_some_and(|wanted| *wanted != object["metadata"][field]) {
                return Err(Refusal::new(409, "Conflict", format!("the {field} in the precondition does not match")));
            }
        }
        if has_finalizers(&object) {
            if object["metadata"]["deletionTimestamp"].is_null() {
                object["metadata"]["deletionTimestamp"] = now().into();
                object = self.write(kind, namespace, name, object);
            }
            return Ok(object);
        }
        self.remove(kind, namespace, name);
        Ok(object)
    }

    /// Away with it, and with what it owns.
    pub(crate) fn remove(&mut self, kind: &Kind, namespace: &str, name: &str) -> Option<Value> {
        let place = place(kind, namespace, name);
        self.applied.retain(|(at, _), _| *at != place);
        self.take(&place)
    }

    fn take(&mut self, place: &Place) -> Option<Value> {
        let before = self.objects.remove(place)?;
        self.version += 1;
        let mut last = before.clone();
        last["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.history.push_back(Change {
            version: self.version,
            plural: place.0.clone(),
            before: Some(last),
            after: None,
        });
        let owns = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array();
            owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == before["metadata"]["uid"]))
        };
        // A namespace takes along what is in it.
        let inside = |at: &Place| place.0 == "namespaces" && at.1 == place.2;
        let owned: Vec<Place> =
            self.objects.iter().filter(|(at, object)| owns(object) || inside(at)).map(|(at, _)| at.clone()).collect();
        for place in owned {
            self.take(&place);
        }
        Some(before)
    }

    fn write(&mut self, kind: &Kind, namespace: &str, name: &str, mut object: Value) -> Value {
        let place = place(kind, namespace, name);
        let before = self.objects.get(&place).cloned();
        object["kind"] = kind.kind.clone().into();
        object["apiVersion"] = kind.api_version(&kind.versions[0]).into();
        for field in ["uid", "creationTimestamp", "deletionTimestamp"] {
            let kept = before.as_ref().and_then(|before| before["metadata"].get(field));
            if let Some(kept) = kept {
                object["metadata"][field] = kept.clone();
            }
        }
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}", self.version + 1).into();
        }
        if object["metadata"]["creationTimestamp"].is_null() {
            object["metadata"]["creationTimestamp"] = now().into();
        }
        let generation = match &before {
            None => 1,
            Some(before) => {
                let last = before["metadata"]["generation"].as_u64().unwrap_or(1);
                last + u64::from(before.get("spec") != object.get("spec"))
            }
        };
        object["metadata"]["generation"] = generation.into();
        if let Some(before) = &before {
            // A write that changes nothing is none.
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            if *before == object {
                return object;
            }
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let change = Change { version: self.version, plural: place.0.clone(), before, after: Some(object.clone()) };
        self.history.push_back(change);
        self.objects.insert(place.clone(), object.clone());
        if !object["metadata"]["deletionTimestamp"].is_null() && !has_finalizers(&object) {
            self.take(&place);
        }
        object
    }
}

impl Refusal {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn not_found(kind: &Kind, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{} \"{name}\" not found", id(kind)))
    }

    fn expired(message: &str) -> Self {
        Self::new(410, "Expired", message)
    }
}

/// As in messages, and unique: `endpointslices.discovery.k8s.io`.
pub(crate) fn id(kind: &Kind) -> String {
    match kind.group.as_str() {
        "" => kind.plural.clone(),
        group => format!("{}.{group}", kind.plural),
    }
}

fn place(kind: &Kind, namespace: &str, name: &str) -> Place {
    let namespace = if kind.scope == Scope::Cluster { "" } else { namespace };
    (id(kind), namespace.to_owned(), name.to_owned())
}

fn text(object: &Value, field: &str) -> String {
    object["metadata"][field].as_str().unwrap_or_default().to_owned()
}

fn with(mut object: Value, field: &str, value: Option<&Value>) -> Value {
    if let Some(object) = object.as_object_mut() {
        match value {
            Some(value) => object.insert(field.to_owned(), value.clone()),
            None => object.remove(field),
        };
    }
    object
}

fn check_version(kind: &Kind, before: &Value, object: &Value) -> Result<(), Refusal> {
    let wanted = &object["metadata"]["resourceVersion"];
    if wanted.is_null() || wanted == "" || *wanted == before["metadata"]["resourceVersion"] {
        return Ok(());
    }
    let message = format!("Operation cannot be fulfilled on {}: the object has been modified", id(kind));
    Err(Refusal::new(409, "Conflict", message))
}

fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty())
}

fn now() -> String {
    let now = Timestamp::now();
    now.round(Unit::Second).unwrap_or(now).to_string()
}
