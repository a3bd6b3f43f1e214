# No account is asked: the provider is a mock, and the outputs of the stacks stand here.

mock_provider "aws" {}

mock_provider "aws" {
  alias = "units"
}

variables {
  region          = "eu-central-1"
  zones           = ["eu-central-1a", "eu-central-1b", "eu-central-1c"]
  organization_id = "o-abcdefghij"
  units_ou        = { id = "ou-abcd-12345678", arn = "arn:aws:organizations::333333333333:ou/o-abcdefghij/ou-abcd-12345678" }
  units_account   = "222222222222"
  owner_account   = "111111111111"
  deployer        = "arn:aws:iam::333333333333:role/pipeline"
  collector_image = "registry/trellis/collector@sha256:0000000000000000000000000000000000000000000000000000000000000000"
  vendor          = { endpoint = "https://otlp.example.com", secret = "arn:aws:secretsmanager:eu-central-1:111111111111:secret:trellis/vendor" }
  s3_prefix_list  = "pl-6ea54007"
}

override_resource {
  target = module.network.aws_cloudformation_stack.this
  values = {
    outputs = {
      Domain                = "trellis.internal"
      VpcId                 = "vpc-1"
      InstanceSecurityGroup = "sg-1"
      CoreSubnets           = "subnet-1,subnet-2,subnet-3"
      UnitSubnets           = "subnet-4,subnet-5,subnet-6"
    }
  }
}

override_resource {
  target = module.data.aws_cloudformation_stack.this
  values = {
    outputs = { LakeBucket = "lake", BundleBucket = "bundles" }
  }
}

override_resource {
  target = module.telemetry.aws_cloudformation_stack.this
  values = {
    outputs = {
      LogDestinationArn = "arn:aws:logs:eu-central-1:111111111111:destination:trellis-logs"
      MetricSinkArn     = "arn:aws:oam:eu-central-1:111111111111:sink/1"
    }
  }
}

run "stacks_are_the_templates" {
  command = apply

  assert {
    condition     = module.tulip.template == file("../../cfn/cluster.yaml") && module.peony.template == module.tulip.template
    error_message = "a cluster must be exactly cfn/cluster.yaml"
  }
  assert {
    condition     = module.account.template == file("../../cfn/account.yaml") && module.accounts_of_units.template == module.account.template
    error_message = "an account must be exactly cfn/account.yaml, here and in the stack set"
  }
  assert {
    condition     = module.network.template == file("../../cfn/network.yaml") && module.data.template == file("../../cfn/data.yaml") && module.telemetry.template == file("../../cfn/telemetry.yaml")
    error_message = "network, data and telemetry must be exactly their templates"
  }
}

run "units_get_shared_subnets_and_no_heads" {
  command = apply

  assert {
    condition     = module.tulip.parameters["Kind"] == "unit" && module.tulip.parameters["Subnets"] == "subnet-4,subnet-5,subnet-6"
    error_message = "tulip runs units in the shared subnets"
  }
  assert {
    condition     = module.peony.parameters["Kind"] == "core" && module.peony.parameters["Subnets"] == "subnet-1,subnet-2,subnet-3"
    error_message = "peony runs heads and shards in the subnets of the network's account"
  }
  assert {
    condition     = module.tulip.parameters["Flower"] == "tulip" && module.tulip.parameters["Grid"] == "trellis"
    error_message = "grid and flower are passed on"
  }
}

run "accounts_of_units_send_logs_and_metrics" {
  command = apply

  assert {
    condition     = module.accounts_of_units.parameters["LogDestination"] == "arn:aws:logs:eu-central-1:111111111111:destination:trellis-logs"
    error_message = "logs of the accounts of units go to the telemetry stack"
  }
  assert {
    condition     = !contains(keys(module.account.parameters), "LogDestination")
    error_message = "the telemetry stack's own account has its own subscription"
  }
}
