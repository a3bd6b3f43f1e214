terraform {
  required_version = ">= 1.7"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100"
    }
  }
}

variable "grid" {
  type        = string
  description = "Name of the grid; the template checks it."
}

variable "parameters" {
  type        = map(string)
  description = "The other parameters of ../../cfn/account.yaml, which describes and checks them."
  default     = {}
}

variable "organizational_units" {
  type        = list(string)
  description = "Ids of the organisational units whose accounts get the stack, also those that join later. Empty: this account alone."
  default     = []
}

variable "region" {
  type        = string
  description = "Region in which those accounts get it. This account gets it in the Region of its provider."
  default     = ""
}

locals {
  template   = file("${path.module}/../../cfn/account.yaml")
  parameters = merge(var.parameters, { Grid = var.grid })
  here       = length(var.organizational_units) == 0
}

resource "aws_cloudformation_stack" "this" {
  count         = local.here ? 1 : 0
  name          = "${var.grid}-account"
  template_body = local.template
  parameters    = local.parameters
  capabilities  = ["CAPABILITY_NAMED_IAM"]
  on_failure    = "ROLLBACK"
  tags          = { "trellis:grid" = var.grid }
}

resource "aws_cloudformation_stack_set" "these" {
  count            = local.here ? 0 : 1
  name             = "${var.grid}-account-${var.region}"
  template_body    = local.template
  parameters       = local.parameters
  capabilities     = ["CAPABILITY_NAMED_IAM"]
  permission_model = "SERVICE_MANAGED"
  tags             = { "trellis:grid" = var.grid }

  auto_deployment {
    enabled = true
    # an account that leaves the unit still has tasks with these roles
    retain_stacks_on_account_removal = true
  }

  operation_preferences {
    # one account, to see that it works, then a quarter of them at a time
    failure_tolerance_count   = 0
    max_concurrent_percentage = 25
    region_concurrency_type   = "SEQUENTIAL"
  }

  lifecycle {
    # CloudFormation sets it for service-managed stack sets
    ignore_changes = [administration_role_arn]
  }
}

resource "aws_cloudformation_stack_set_instance" "these" {
  count          = local.here ? 0 : 1
  stack_set_name = aws_cloudformation_stack_set.these[0].name
  region         = var.region

  deployment_targets {
    organizational_unit_ids = var.organizational_units
  }
}

output "outputs" {
  description = "The outputs of this account's stack; empty for other accounts."
  value       = local.here ? aws_cloudformation_stack.this[0].outputs : {}
}

output "template" {
  description = "The template as it is sent."
  value       = local.here ? aws_cloudformation_stack.this[0].template_body : aws_cloudformation_stack_set.these[0].template_body
}

output "parameters" {
  description = "The parameters as they are sent."
  value       = local.here ? aws_cloudformation_stack.this[0].parameters : aws_cloudformation_stack_set.these[0].parameters
}
