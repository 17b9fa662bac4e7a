//! Names of repositories, as people write them.

use std::fmt;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RepoKind {
    Model,
    Dataset,
}

/// `OWNER/NAME`, perhaps with `@REVISION`: a branch, a tag or a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoName {
    pub kind: RepoKind,
    pub id: String,
    pub revision: Option<String>,
}

impl RepoName {
    /// A model's name; none for what cannot be one (a path with more parts, dots in front, odd characters).
    pub fn model(text: &str) -> Option<RepoName> {
        let (id, revision) = with_revision(text)?;
        let (owner, name) = id.split_once('/')?;
        // Routes of the hub, so no owners; and what a folder of checkpoints is called.
        let route = ["models", "datasets", "spaces"].contains(&owner);
        (is_part(owner) && is_part(name) && !route).then(|| RepoName { kind: RepoKind::Model, id: id.into(), revision })
    }

    /// `datasets/OWNER/NAME[@REVISION][/FILE]`, and the file.
    pub fn dataset(text: &str) -> Option<(RepoName, Option<String>)> {
        let rest = text.strip_prefix("datasets/")?;
        let (owner, rest) = rest.split_once('/')?;
        let (name, file) = rest.split_once('/').map_or((rest, None), |(name, file)| (name, Some(file.to_string())));
        let (name, revision) = with_revision(name)?;
        let fits = is_part(owner) && is_part(name) && file.as_deref().is_none_or(is_plain);
        let repo = RepoName { kind: RepoKind::Dataset, id: format!("{owner}/{name}"), revision };
        fits.then_some((repo, file))
    }

    /// Its page, below the hub's address.
    pub fn page(&self) -> String {
        match self.kind {
            RepoKind::Model => self.id.clone(),
            RepoKind::Dataset => format!("datasets/{}", self.id),
        }
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.page())?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

fn with_revision(text: &str) -> Option<(&str, Option<String>)> {
    match text.split_once('@') {
        None => Some((text, None)),
        Some((id, revision)) => {
            let fits = is_plain(revision) && revision.chars().all(|c| c.is_alphanumeric() || "-_./".contains(c));
            fits.then(|| (id, Some(revision.to_string())))
        }
    }
}

fn is_part(text: &str) -> bool {
    text.starts_with(char::is_alphanumeric) && text.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
}

/// A path that stays below where it is put.
pub fn is_plain(path: &str) -> bool {
    !path.is_empty()
        && !path.contains('\\')
        && path.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_with_and_without_a_revision() {
        let model = RepoName::model("Qwen/Qwen3-0.6B").unwrap();
        assert_eq!((model.id.as_str(), model.revision.as_deref()), ("Qwen/Qwen3-0.6B", None));
        let pinned = RepoName::model("o/n@refs/pr/1").unwrap();
        assert_eq!((pinned.revision.as_deref(), pinned.to_string().as_str()), (Some("refs/pr/1"), "o/n@refs/pr/1"));
        for bad in
            ["model", "./a/b", "a/b/c", "/a/b", "../a", "a/", "a/b@", "a/b@../x", "a b/c", "models\\a", "models/a"]
        {
            assert_eq!(RepoName::model(bad), None, "{bad}");
        }
        let (repo, file) = RepoName::dataset("datasets/o/n@v1/data/test.parquet").unwrap();
        assert_eq!((repo.to_string().as_str(), file.as_deref()), ("datasets/o/n@v1", Some("data/test.parquet")));
        for bad in ["o/n", "datasets/o", "datasets/o/n/../x", "datasets/o/n/", "models/o/n"] {
            assert_eq!(RepoName::dataset(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_name_leads_out_of_the_cache(text in "[a-z./@\\\\]{0,20}") {
            for repo in [RepoName::model(&text), RepoName::dataset(&format!("datasets/{text}")).map(|(repo, _)| repo)] {
                let Some(repo) = repo else { continue };
                prop_assert!(is_plain(&repo.id) && repo.revision.as_deref().is_none_or(is_plain));
            }
        }
    }
}
