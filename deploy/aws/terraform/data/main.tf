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
  description = "The other parameters of ../../cfn/data.yaml, which describes and checks them."
  default     = {}
}

resource "aws_cloudformation_stack" "this" {
  name          = "${var.grid}-data"
  template_body = file("${path.module}/../../cfn/data.yaml")
  parameters    = merge(var.parameters, { Grid = var.grid })
  capabilities  = ["CAPABILITY_NAMED_IAM"]
  on_failure    = "ROLLBACK"
  tags          = { "trellis:grid" = var.grid }
}

output "outputs" {
  description = "The outputs of the template."
  value       = aws_cloudformation_stack.this.outputs
}

output "template" {
  description = "The template as it is sent."
  value       = aws_cloudformation_stack.this.template_body
}

output "parameters" {
  description = "The parameters as they are sent."
  value       = aws_cloudformation_stack.this.parameters
}
