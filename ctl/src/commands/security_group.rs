//! `berthctl security-group …`.

use berth_common::{
    ids::{SecurityGroupId, SecurityGroupRuleId},
    message::{
        request::default_page,
        security_group::{
            SecurityGroupCreate, SecurityGroupDelete, SecurityGroupList, SecurityGroupListReply,
            SecurityGroupRuleCreate, SecurityGroupRuleDelete, SecurityGroupSet, SecurityGroupShow,
            SecurityGroupView,
        },
    },
    names::ProjectName,
    refusal::RefusalCode,
};

use super::{Context, repeat_with_id};
use crate::{
    cli::{SecurityGroup, SecurityGroupRuleCommand, SecurityGroupRuleCreateArgs},
    client::Caller,
    error::CtlError,
    print::security_group,
};

pub(super) async fn run<C: Caller>(
    context: &Context<C>,
    command: SecurityGroup,
) -> Result<(), CtlError> {
    match command {
        SecurityGroup::Create(arguments) => {
            let id = arguments.id.unwrap_or_else(SecurityGroupId::new);
            let request = SecurityGroupCreate {
                id,
                name: arguments.name,
                project: context.project(),
                description: arguments.description,
            };
            let answer = context.ask(&request).await;
            let view = answer.map_err(|error| error.advise(&repeat_with_id(&id)))?;
            context.print(&view, security_group::show)
        }
        SecurityGroup::Set(arguments) => {
            let meant = found(context, arguments.security_group).await?;
            let request = SecurityGroupSet {
                security_group: meant.id.to_string(),
                project: meant.project,
                name: arguments.name,
                description: arguments.description,
            };
            let view = context.wish(&request).await?;
            context.print(&view, security_group::show)
        }
        SecurityGroup::List => list(context).await,
        SecurityGroup::Show { name } => {
            let view = found(context, name).await?;
            context.print(&view, security_group::show)
        }
        SecurityGroup::Delete { name } => {
            let view = delete(context, name).await?;
            context.print(&view, |view, _| security_group::deleted(view))
        }
        SecurityGroup::Rule(SecurityGroupRuleCommand::Create(arguments)) => {
            let request = rule_request(arguments, context.project())?;
            let answer = context.ask(&request).await;
            let view = answer.map_err(|error| error.advise(&repeat_with_id(&request.id)))?;
            context.print(&view, |view, width| {
                let created = view.rules.iter().filter(|rule| rule.id == request.id);
                security_group::rules(created, width)
            })
        }
        SecurityGroup::Rule(SecurityGroupRuleCommand::Delete { id }) => {
            let view = context.wish(&SecurityGroupRuleDelete { id }).await?;
            context.print(&view, |view, _| {
                format!(
                    "security group rule {id}: deleted from {} ({})\n",
                    view.name, view.id
                )
            })
        }
        SecurityGroup::Rule(SecurityGroupRuleCommand::List { security_group }) => {
            let view = found(context, security_group).await?;
            context.print(&view, |view, width| {
                security_group::rules(view.rules.iter(), width)
            })
        }
    }
}

async fn found<C: Caller>(
    context: &Context<C>,
    security_group: String,
) -> Result<SecurityGroupView, CtlError> {
    let show = SecurityGroupShow {
        security_group,
        project: context.project(),
    };
    context.ask(&show).await
}

async fn delete<C: Caller>(
    context: &Context<C>,
    name: String,
) -> Result<SecurityGroupView, CtlError> {
    let meant = found(context, name)
        .await
        .map_err(CtlError::before_asking)?;
    let request = SecurityGroupDelete {
        security_group: meant.id.to_string(),
        project: meant.project.clone(),
    };
    match context.wish(&request).await {
        // By its id: it is gone, by this command or by another.
        Err(CtlError::Refused(refusal)) if refusal.code == RefusalCode::NotFound => Ok(meant),
        answer => answer,
    }
}

async fn list<C: Caller>(context: &Context<C>) -> Result<(), CtlError> {
    let page = |last: Option<&SecurityGroupView>| SecurityGroupList {
        project: context.project.clone(),
        after: last.map(|last| last.id),
        limit: default_page(),
    };
    let security_groups = context
        .pages(page, |reply: SecurityGroupListReply| {
            (reply.security_groups, reply.more)
        })
        .await?;
    let all = SecurityGroupListReply {
        security_groups,
        more: false,
    };
    context.print(&all, |all, width| {
        security_group::list(&all.security_groups, width)
    })
}

fn rule_request(
    arguments: SecurityGroupRuleCreateArgs,
    project: ProjectName,
) -> Result<SecurityGroupRuleCreate, CtlError> {
    let protocol = arguments.rule_protocol().map_err(CtlError::Usage)?;
    Ok(SecurityGroupRuleCreate {
        id: arguments.id.unwrap_or_else(SecurityGroupRuleId::new),
        direction: arguments.direction(),
        ethertype: arguments.ethertype(),
        protocol,
        project,
        security_group: arguments.security_group,
        remote_ip_prefix: arguments.remote_ip,
        remote_group: arguments.remote_group,
    })
}

#[cfg(test)]
mod tests;
